"""The security scanner for model files: `service.scan_model` runs `scanner` in a child process.

`kinds` says what a file is by its content, `checks/` has one module per kind of file, `pickles/` reads pickles without
loading them. Nothing here imports, unpickles or executes anything that a model brings.
"""
