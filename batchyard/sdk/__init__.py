"""What `Client` and `AsyncClient` share: every call as steps that do no I/O, and the drivers that perform them."""
