"""The schema's history; run by `holdfast db upgrade`."""
