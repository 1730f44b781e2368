"""`python -m frcnn_jax.make_proposals`."""

from frcnn_jax.errors import run_main
from frcnn_jax.make_proposals import main

if __name__ == "__main__":
    run_main(main)
