"""`python -m frcnn_jax.eval_voc`."""

from frcnn_jax.errors import run_main
from frcnn_jax.eval_voc import main

if __name__ == "__main__":
    run_main(main)
