{{/*
Tokens with which the pods of the mode `sidecars` prove to sentry who they are: JWTs that sentry verifies (its validator
`jwks`), one for each identity, in a Secret that only its pods mount. Templates have SHA-256 but no HMAC, so HMAC is made of
its definition here: SHA256((K xor opad) + SHA256((K xor ipad) + text)). What is drawn at random is K xor ipad, 64 capital
letters; K xor opad differs from it by 0x6a in each letter, K by 0x36.
*/}}
{{- define "stepway.shifted" -}}
{{- $table := dict -}}
{{- $to := .to -}}
{{- range $place, $letter := splitList "" "ABCDEFGHIJKLMNOPQRSTUVWXYZ" -}}
{{- $_ := set $table $letter (index $to $place) -}}
{{- end -}}
{{- range splitList "" .text }}{{ get $table . }}{{ end -}}
{{- end }}

{{/* Base64 of 32 bytes that are given as 64 hexadecimal digits. */}}
{{- define "stepway.base64OfHex" -}}
{{- $digits := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" -}}
{{- $hex := print . "00" -}}
{{- $made := "" -}}
{{- range $group := until 11 -}}
{{- $start := mul $group 6 | int -}}
{{- $number := print "0x" (substr $start (add $start 6 | int) $hex) | int64 -}}
{{- range $weight := list 262144 4096 64 1 -}}
{{- $digit := mod (div $number $weight) 64 | int -}}
{{- $made = print $made (substr $digit (add1 $digit | int) $digits) -}}
{{- end -}}
{{- end -}}
{{- substr 0 43 $made }}=
{{- end }}

{{- define "stepway.base64url" -}}
{{- . | b64enc | replace "+" "-" | replace "/" "_" | trimAll "=" -}}
{{- end }}

{{/* Takes (dict "inner" 64 capital letters "text" …); gives the HMAC in base64url. */}}
{{- define "stepway.hmac" -}}
{{- $opad := splitList "" "+()./,-\"# !&'$%:;89>?<=230" -}}
{{- $outer := include "stepway.shifted" (dict "text" .inner "to" $opad) -}}
{{- $first := print .inner .text | sha256sum -}}
{{- $second := print $outer (include "stepway.base64OfHex" $first | b64dec) | sha256sum -}}
{{- include "stepway.base64OfHex" $second | replace "+" "-" | replace "/" "_" | trimAll "=" -}}
{{- end }}

{{/* The key K as sentry reads it. */}}
{{- define "stepway.jwks" -}}
{{- $plain := list "w" "t" "u" "r" "s" "p" "q" "~" "\x7f" "|" "}" "z" "{" "x" "y" "f" "g" "d" "e" "b" "c" "`" "a" "n" "o" "l" -}}
{{- $key := include "stepway.shifted" (dict "text" . "to" $plain) -}}
{{- dict "keys" (list (dict "kty" "oct" "alg" "HS256" "use" "sig" "kid" "stepway" "k" (include "stepway.base64url" $key))) | toJson -}}
{{- end }}

{{/* Takes (dict "inner" … "subject" … "audience" …). It has no end: the Secret is what is replaced. */}}
{{- define "stepway.jwt" -}}
{{- $head := dict "alg" "HS256" "kid" "stepway" "typ" "JWT" | toJson -}}
{{- $claims := dict "sub" .subject "aud" (list .audience) | toJson -}}
{{- $text := printf "%s.%s" (include "stepway.base64url" $head) (include "stepway.base64url" $claims) -}}
{{- $text }}.{{ include "stepway.hmac" (dict "inner" .inner "text" $text) }}
{{- end }}
