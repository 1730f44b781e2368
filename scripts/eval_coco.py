"""`frcnn eval-coco`."""

from frcnn_jax.__main__ import run

if __name__ == "__main__":
    run("eval-coco")
