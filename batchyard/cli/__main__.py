"""`python -m batchyard.cli`, which is also how `up` and the local scaler start their children."""

from batchyard.cli.app import main

main()
