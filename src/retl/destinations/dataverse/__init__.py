"""Dataverse and Dynamics 365."""
