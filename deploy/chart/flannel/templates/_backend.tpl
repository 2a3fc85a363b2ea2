{{- /*
The object Backend of net-conf.json. What is empty, 0 or false is not written, as in the original's chart.
*/}}
{{- define "flannel.backend" -}}
{{- $f := .Values.flannel -}}
{{- $options := dict
  "vxlan" (list (list "VNI" $f.vni) (list "Port" $f.backendPort) (list "MTU" $f.mtu) (list "GBP" $f.GBP)
    (list "DirectRouting" $f.directRouting) (list "MacPrefix" $f.macPrefix))
  "wireguard" (list (list "ListenPort" $f.backendPort) (list "ListenPortV6" $f.backendPortv6) (list "PSK" $f.psk)
    (list "MTU" $f.mtu) (list "Mode" $f.tunnelMode) (list "PersistentKeepaliveInterval" $f.keepaliveInterval))
  "udp" (list (list "Port" $f.backendPort))
  "ipip" (list (list "DirectRouting" $f.directRouting)) -}}
{
    "Type": {{ $f.backend | toJson }}
{{- range get $options $f.backend | default list }}
{{- $value := index . 1 }}
{{- /* Numbers of values.yaml are floating-point to Helm, which prints large ones as 1e+06. */}}
{{- if kindIs "float64" $value }}{{ $value = int64 $value }}{{ end }}
{{- if $value }},
    {{ index . 0 | toJson }}: {{ $value | toJson }}
{{- end }}
{{- end }}
  }
{{- end }}
