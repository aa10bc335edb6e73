"""Read documents, tables and conversations from files and named data sets."""
