"""`python -m benchmarks NAME [options]`: reprolib measured against its peers, in alternating rounds of one run.

Each bench is a module with `add_arguments(parser)` and `run(arguments)`, which returns what is written as JSON; its
table goes to standard error. `table` makes the README's table from the written files.
"""
