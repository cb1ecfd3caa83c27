"""What runs models: one small interface (`base`), one module per engine, and `registry` that picks one."""
