"""`python -m frcnn_jax.eval_coco`."""

from frcnn_jax.errors import run_main
from frcnn_jax.eval_coco import main

if __name__ == "__main__":
    run_main(main)
