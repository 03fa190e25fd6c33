"""Clusters on Ray: built by its actors, served by its replicas. Functions import Ray when they are called."""
