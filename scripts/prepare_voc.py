"""`python -m frcnn_jax.prepare_voc`."""

from frcnn_jax.errors import run_main
from frcnn_jax.prepare_voc import main

if __name__ == "__main__":
    run_main(main)
