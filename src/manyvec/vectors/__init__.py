"""Token vectors: batches of them, codecs, centroids, and MaxSim on CPU and GPU."""
