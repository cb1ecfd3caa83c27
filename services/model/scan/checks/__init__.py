"""One module per kind of file; `registry` lists them, `protocol` says what each has."""
