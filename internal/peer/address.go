package peer

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// ParseAddress reads where a host is dialled: a name or an IP address, with or without a port; IPv6 with a port has
// brackets. Without a port it is the given one.
func ParseAddress(text, port string) (host, hostPort string, err error) {
	host = text
	if ip, ok := parseIP(text); ok {
		return ip.String(), net.JoinHostPort(strings.Trim(text, "[]"), port), nil
	}
	if strings.Contains(text, ":") {
		if host, port, err = net.SplitHostPort(text); err != nil {
			return "", "", fmt.Errorf("%q is no address: write HOST or HOST:PORT, an IPv6 address with a port as [ADDRESS]:PORT", text)
		}
	}
	if !isPort(port) {
		return "", "", fmt.Errorf("%q is no address: port %q is not one from 1 to 65535", text, port)
	}
	if ip, ok := parseIP(host); ok {
		return ip.String(), net.JoinHostPort(strings.Trim(host, "[]"), port), nil
	}
	name, ok := hostName(host)
	if !ok {
		return "", "", fmt.Errorf("%q is no address: %q is no host's name", text, host)
	}
	return name, net.JoinHostPort(name, port), nil
}

// ParseListen reads where to listen: :PORT for all of this host's addresses, or IP:PORT.
func ParseListen(text string) (ip, port string, err error) {
	ip, port, err = net.SplitHostPort(text)
	if err != nil {
		return "", "", fmt.Errorf("%q is nothing to listen at: write :%s, or ADDRESS:PORT", text, DefaultPort)
	}
	if !isPort(port) {
		return "", "", fmt.Errorf("%q is nothing to listen at: port %q is not one from 1 to 65535", text, port)
	}
	if net.ParseIP(ip) == nil && ip != "" {
		return "", "", fmt.Errorf("%q is nothing to listen at: %q is no IP address of this host", text, ip)
	}
	return ip, port, nil
}

// OwnAddress is where other hosts dial this one: the configured address, or else the host's name, each with the port
// that is listened at unless it has its own.
func OwnAddress(address, listen, hostname string) (string, error) {
	port := DefaultPort
	if listen != "" {
		var err error
		if _, port, err = ParseListen(listen); err != nil {
			return "", err
		}
	}
	if address == "" {
		address = hostname
	}
	_, hostPort, err := ParseAddress(address, port)
	return hostPort, err
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0 && text[0] != '0'
}
