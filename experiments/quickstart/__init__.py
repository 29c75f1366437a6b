"""The main job: a small CNN on real images, trained dense and sparse, and compared."""
