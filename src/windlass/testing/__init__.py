"""Public fakes and conformance kits: scripted provider, fake clock, fault server, conformance kits."""
