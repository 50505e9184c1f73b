"""What a dataset is on disk: tar members, index columns, the manifest. Bytes only; no torch."""
