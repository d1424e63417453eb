"""The story `inv demo` tells: a small bar's database, backed up, lost and brought back."""
