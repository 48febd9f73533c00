"""One module a verb of the command line; each has HELP, add_arguments and run."""
