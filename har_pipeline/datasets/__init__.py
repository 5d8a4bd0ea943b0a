"""Which videos there are and how they are divided: manifests, builders of known data sets, protocols, splits."""
