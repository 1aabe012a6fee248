"""Links: the exchange of processes on CPUs over one stream socket a pair, which live through epochs. hub makes them."""
