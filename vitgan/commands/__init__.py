"""The commands of the command line, a file each; `main` takes the arguments and returns the exit status."""
