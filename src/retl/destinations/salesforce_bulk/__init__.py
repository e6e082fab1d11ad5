"""Salesforce records through Bulk API 2.0."""
