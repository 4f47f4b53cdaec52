"""Stand-ins for servers, over real HTTP: the Hub, an inference server, a language model."""
