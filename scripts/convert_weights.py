"""`python -m frcnn_jax.convert_weights`."""

from frcnn_jax.convert_weights import main
from frcnn_jax.errors import run_main

if __name__ == "__main__":
    run_main(main)
