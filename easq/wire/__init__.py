"""The protocol of the EAS queue service, both sides, without I/O."""
