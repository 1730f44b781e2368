"""`python -m frcnn_jax.compress`."""

from frcnn_jax.compress import main
from frcnn_jax.errors import run_main

if __name__ == "__main__":
    run_main(main)
