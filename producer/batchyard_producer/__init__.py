"""The HTTP API and the dispatcher it hosts: gets work onto queues."""
