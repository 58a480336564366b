"""What differs per model family: how prompts are encoded, what the network is fed, how latents become pixels."""
