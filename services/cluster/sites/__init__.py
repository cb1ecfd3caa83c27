"""What differs between kinds of clusters, behind one interface; jobs and observers know no kinds."""
