"""The command line and the YAML files as one configuration. The only user of Hydra's composition."""
