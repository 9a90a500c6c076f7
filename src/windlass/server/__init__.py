"""The front door over HTTP: a provider turned inside out."""
