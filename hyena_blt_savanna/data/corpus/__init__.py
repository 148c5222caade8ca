"""A corpus of any size into sources: folders of shards with one manifest each.

    inputs ──► records ──► cleaned documents ──► spill, by keyed hash ──► shards ──► source.json
    (inputs, byte_streams)  (records, rows,     (cleaning, spool,  (spill)       (shards)   (source)
                             fastq)              tags, splits)

One input at a time is read in constant memory, whatever the length of its records. The documents of a source are
ordered by a keyed hash and cut into shards by ranges of it, so that neither the number of ranks nor the order of work
changes a byte; with `shuffle: false` each input is written straight into shards of its own. `pipeline` does it all.
"""
