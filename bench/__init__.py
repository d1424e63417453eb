"""How fast the tasks are, against the plain tools, on the machine at hand: `scripts/inv bench`."""
