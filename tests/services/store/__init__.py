"""What every job store must do: the same tests over SQLite in memory, SQLite in a file, and Postgres."""
