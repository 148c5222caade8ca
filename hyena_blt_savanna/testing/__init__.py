"""For tests: ranks on one machine and toy genomes."""
