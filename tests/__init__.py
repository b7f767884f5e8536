"""Tests mirror the packages that they test. (A dependency installs a package of this name, too.)"""
