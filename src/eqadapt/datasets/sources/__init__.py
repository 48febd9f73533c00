"""One module a data set (or a family in one format), each with ``SOURCES``."""
