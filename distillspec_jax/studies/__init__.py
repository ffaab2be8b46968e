"""Many runs -> one answer."""
