"""Run the images through a network once and turn what the scorers measure into scores."""
