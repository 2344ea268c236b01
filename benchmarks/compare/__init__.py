"""Planwave beside its peers: the same graphs, the same model, one database server, in interleaved rounds."""
