"""Where workers run: one small interface (`base`) and its implementations (`local`, `kubernetes`)."""
