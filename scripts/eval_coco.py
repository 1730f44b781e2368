"""The command `frcnn eval-coco` as a script."""

from frcnn_jax.cli import run

if __name__ == "__main__":
    run("eval-coco")
