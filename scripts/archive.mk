# The Makefile of a release archive: its binaries need no compiler.
.DEFAULT_GOAL := help
PREFIX ?= /usr/local

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

.PHONY: demo
demo: ## inject a real manifest, program a real namespace, show captured connections (root)
	scripts/install-tools prebuilt
	./weir-demo $(DEMO_ARGS)

.PHONY: install
install: ## install weir, weir-iptables, manual pages and completion below PREFIX (/usr/local)
	install -Dm 0755 -t $(DESTDIR)$(PREFIX)/bin weir weir-iptables
	ln -sf weir $(DESTDIR)$(PREFIX)/bin/kubectl-weir
	install -Dm 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 man/*
	install -Dm 0644 completion/weir.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/weir
	install -Dm 0644 completion/weir.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_weir
	install -Dm 0644 completion/weir.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/weir.fish
