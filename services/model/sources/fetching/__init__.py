"""What the sources share: downloads that resume, the scratch folder of a fetch, archives, names made safe."""
