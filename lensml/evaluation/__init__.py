"""Metrics, the ideal observer, early detection, alerts, baseline methods."""
