"""Videos: data sets on disk, decoding, sampling of clips, the stream."""
