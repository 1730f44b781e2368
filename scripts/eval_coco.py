"""`frcnn eval-coco`."""

from frcnn_jax.cli import run

if __name__ == "__main__":
    run("eval-coco")
