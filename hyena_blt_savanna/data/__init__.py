"""Records, shards, windows and batches: everything between a FASTA file and a tensor."""
